"""The list that mutations.py goes through: signs flipped, terms dropped, masks forgotten, and the tests that are to notice.

`tests/test_mutations.py` holds it against the sources: every mutation fits, and every kernel under a gradient has a flipped sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

OPS = "tests/gradients/test_ops.py"
CONTRACT = "tests/ops/test_contract.py"
TAPE = "tests/gradients/test_autograd.py"
OPTIM = "tests/optim"
GPU_OPS = ("tests/gpu/test_ops.py", "tests/gpu/test_attention.py", "-k", "attention and not half")
DECODER_ON_GPU = "tests/gpu/test_decoder.py"
LIBRARIES = "tests/gpu/test_libraries.py"


@dataclass(frozen=True)
class Mutation:
    """`old` stands in the file once; `tests` is what pytest is to run."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *tests: str, **changes: tuple[str, str]) -> list[Mutation]:
    stem = Path(file).stem + (" on the gpu" if "_gpu/" in file else "")
    return [Mutation(f"{stem}: {name.replace('_', ' ')}", file, old, new, tests) for name, (old, new) in changes.items()]


def op_tests(*names: str) -> tuple[str, ...]:
    """The comparisons with the float64 reference, of gradients and of results with a tape and without, for some ops."""
    return OPS, CONTRACT, "-k", f"(of_the_reference or result_is_right or bits_with_a_tape) and ({' or '.join(names)})"


def gpu_tests(words: str) -> tuple[str, ...]:
    """The same for the GPU's kernels, on the emulator."""
    return "tests/gpu/test_ops.py", "-k", f"emulated and ({words})"


MUTATIONS: list[Mutation] = [
    # The fused layers
    *_of(
        "lucid/_ext/encoder.pyx",
        CONTRACT,
        "-k",
        "encoder",
        residual_forgotten=("rows_times(layer.to_out, wide, n, y, total,", "rows_times(layer.to_out, wide, n, NULL, total,"),
        first_input_again=("        px = h", "        px = &x[0, 0]"),
        rows_of_every_layer=("of_last if i == n_layers - 1 else NULL", "of_last"),
    ),
    *_of(
        "lucid/_ext/encoder.pyx",
        "tests/ops/test_encoder.py",
        signals_unheard=("        PyErr_CheckSignals()", "        pass"),
    ),
    *_of(
        "lucid/nn/parameter.py",
        "tests/models/test_fused.py",
        adopted_in_silence=(
            "self._array, self._view, self._packed = None, None, weight\n            self.version += 1\n            changed()",
            "self._array, self._view, self._packed = None, None, weight\n            self.version += 1",
        ),
    ),
    *_of("lucid/nn/derived.py", "tests/models/test_fused.py", old_weights_kept=("            _made.clear()", "            pass")),
    # Attention
    *_of(
        "lucid/_ext/attention.pyx",
        *op_tests("attention"),
        dq_zero=(
            "memcpy(d.d_q + (q0 + i) * d.q_stride + head * width, dq + i * wide,",
            "memset(d.d_q + (q0 + i) * d.q_stride + head * width, 0,",
        ),
        dk_zero=(
            "memcpy(d.d_k + (begin + i) * d.k_stride + head * width, dk + i * wide,",
            "memset(d.d_k + (begin + i) * d.k_stride + head * width, 0,",
        ),
        dv_zero=(
            "memcpy(d.d_v + (begin + i) * d.v_stride + head * width, dv + i * wide,",
            "memset(d.d_v + (begin + i) * d.v_stride + head * width, 0,",
        ),
        ds_sign=("dp_row[j] = call.scale * p_row[j]", "dp_row[j] = -call.scale * p_row[j]"),
        ds_without_the_scale=("dp_row[j] = call.scale * p_row[j]", "dp_row[j] = p_row[j]"),
        delta_sign=("(dp_row[j] - row_delta)", "(dp_row[j] + row_delta)"),
        delta_of_a_block_lost=("delta[i] += dot_row(p_row, dp_row, keys)", "delta[i] = dot_row(p_row, dp_row, keys)"),
        lse_sign=("-call.lse[(q0 + i) * call.n_heads + head]", "call.lse[(q0 + i) * call.n_heads + head]"),
        dp_without_the_mask=("dp_row[j] *= mask[i * KEY_BLOCK + j]", "dp_row[j] *= 1"),
        dv_sign=("mask[i * KEY_BLOCK + j] *= p_row[j]", "mask[i * KEY_BLOCK + j] *= -p_row[j]"),
        dv_without_the_mask=("mask[i * KEY_BLOCK + j] *= p_row[j]", "mask[i * KEY_BLOCK + j] = p_row[j]"),
        mask_of_other_keys=("call.key_columns + begin + k0", "call.key_columns + begin"),
        dq_of_the_last_keys_alone=("width - panel * PANEL, key_block > 0)", "width - panel * PANEL, False)"),
        scale_of_the_gradient_sign=("call.scale = scale\n    call.out = NULL", "call.scale = -scale\n    call.out = NULL"),
        forward_rescaling_sign=("alpha = exp1(m[i] - top)", "alpha = exp1(top - m[i])"),
        forward_lse_sign=("m[i] + <float> log1(l[i])", "m[i] - <float> log1(l[i])"),
        forward_mask_of_other_keys=("call.key_columns + key_begin + k0", "call.key_columns + key_begin"),
    ),
    # Attention of the GPU, emulated
    *_of(
        "lucid/_gpu/attention.cu",
        *GPU_OPS,
        delta_sign=("scale * p[i][j] * (d_p[i][j] - row_delta[i])", "scale * p[i][j] * (d_p[i][j] + row_delta[i])"),
        scores_beyond_the_keys=("? p[i][j] * scale : -INFINITY", "? p[i][j] * scale : 0"),
        barrier_before_the_products=("    __syncthreads();\n    add_products(c, staged", "    add_products(c, staged"),
        barrier_before_the_weights=("  __syncthreads();\n  store_weights", "  store_weights"),
    ),
    *_of(
        "lucid/_gpu/attention_mma.cu",
        "tests/gpu/test_attention.py",
        rows_of_others=("row < n_rows ? rows + row * stride + 8 * chunk : rows, row < n_rows", "rows + row * stride + 8 * chunk, true"),
        banks=("row / 2 % 4 : row % 8", "row / 2 % 2 : row % 4"),
        rescaling_lost=("o[d][2 * h] *= alpha, ", ""),
        probabilities_beyond_the_keys=(
            "is_key ? exp2f(fmaf(p[j][e], scale_2, -row_lse[e / 2])) : 0",
            "exp2f(fmaf(p[j][e], scale_2, -row_lse[e / 2]))",
        ),
        lse_in_base_2=("m[h] * LN_2 + logf(sum)", "m[h] + logf(sum)"),
        words_of_other_queries=("is_odd ? query_columns[1] : query_columns[0]", "is_odd ? query_columns[0] : query_columns[1]"),
        words_of_other_keys=("key / 4 + i / 2 * 2 + lane() / 16", "key / 4 + i / 2 * 2"),
        words_unturned=("{{c, d, w.word[2], w.word[3]}}", "{{d, c, w.word[2], w.word[3]}}"),
        barrier_before_the_next_copy=(
            "    add_weighted_rows<D, TILE>(o, p, v_tiles + now);\n    __syncthreads();",
            "    add_weighted_rows<D, TILE>(o, p, v_tiles + now);",
        ),
        barrier_after_the_copy=("    __syncthreads();\n    float p[TILE / 8][4];", "    float p[TILE / 8][4];"),
        wait_without_queries=("  cp_async_wait<0>();", ""),
        rows_beyond_the_tile=("if (to < n_rows)", "if (true)"),
    ),
    # LayerNorm
    *_of(
        "lucid/_ext/layer_norm.pyx",
        *op_tests("layer_norm", "embedding"),
        sign_of_what_is_added=("load(a + i * LANES) + load(b + i * LANES)", "load(a + i * LANES) - load(b + i * LANES)"),
        d_x_sign_of_the_mean=("dx[i] = r * (g - g_mean - normal * gn_mean)", "dx[i] = r * (g + g_mean - normal * gn_mean)"),
        d_x_sign_of_the_variance=("dx[i] = r * (g - g_mean - normal * gn_mean)", "dx[i] = r * (g - g_mean + normal * gn_mean)"),
        d_gain_sign=("d_gain[i] += dy[i] * normal", "d_gain[i] -= dy[i] * normal"),
        d_bias_sign=("d_bias[i] += dy[i]", "d_bias[i] -= dy[i]"),
        sum_of_a_tail_lost=("gn_lanes[j] += g * ((x[i] - mu) * r)", "gn_lanes[j] += 0"),
        last_row_of_a_block_lost=("min(n_rows, (block + 1) * NORM_ROWS)", "min(n_rows, (block + 1) * NORM_ROWS - 1)"),
        sum_sign=("g_lanes[j] += g\n            gn", "g_lanes[j] -= g\n            gn"),
        forward_sign=("fma((load(x + i * LANES) - set1(mu)) * set1(r)", "fma((load(x + i * LANES) + set1(mu)) * set1(r)"),
        forward_sign_of_a_tail=("y[i] = fma1((x[i] - mu) * r, gain[i], bias[i])", "y[i] = fma1((x[i] + mu) * r, gain[i], bias[i])"),
    ),
    # Activations
    *_of(
        "lucid/_ext/elementary.pyx",
        OPS,
        CONTRACT,
        "-k",
        "slopes_over or ((of_the_reference or result_is_right) and activation)",
        gelu_slope=("exp_vector(set1(-0.5) * x * x)", "exp_vector(set1(-0.25) * x * x)"),
        gelu_slope_sign=("return fma(x, t, fma(set1(0.5)", "return fma(set1(0) - x, t, fma(set1(0.5)"),
        gelu_new_slope_sign=("fma(set1(0.134145), s, set1(1))", "fma(set1(-0.134145), s, set1(1))"),
        relu_slope=("choose(less(set1(0), x), set1(1), set1(0))", "choose(less(set1(0), x), set1(0), set1(1))"),
        silu_slope_sign=("return sigmoid_slope(x, x)", "return sigmoid_slope(x, set1(0) - x)"),
        sigmoid_side=("choose(less(x, set1(0)), e, s))", "choose(less(x, set1(0)), s, e))"),
        tanh_slope_sign=("return set1(1) - t * t", "return set1(1) + t * t"),
        sign_of_whole_vectors=(
            "store(d_x + i * LANES, load(d_y + i * LANES) *",
            "store(d_x + i * LANES, (set1(0) - load(d_y + i * LANES)) *",
        ),
        forward_sign=(
            "fma(half, erf_vector(x * set1(0.70710678118654752)), half)",
            "fma(half, erf_vector(x * set1(-0.70710678118654752)), half)",
        ),
        sign_of_a_tail=("d_x[i] = d_y[i] * tail[i - whole]", "d_x[i] = -d_y[i] * tail[i - whole]"),
    ),
    # Products
    *_of(
        "lucid/_ext/gemm.pyx",
        *op_tests("linear"),
        bias_sum_sign=("totals[j] += x[i * stride + j]", "totals[j] -= x[i * stride + j]"),
        transposed_operand_sign=("y[j * y_stride + i] = x[i * x_stride + j]", "y[j * y_stride + i] = -x[i * x_stride + j]"),
        packed_columns_sign=(
            "memcpy(out + i * PANEL, b + i * stride, columns * sizeof(float))",
            "memcpy(out + i * PANEL, b + i * stride, columns * sizeof(float))\n        out[i * PANEL] = -out[i * PANEL]",
        ),
        a_packed_row_lost=("transpose(w, stride, columns, k, out, PANEL)", "transpose(w, stride, columns - 1, k, out, PANEL)"),
        packed_columns_zero=(
            "memcpy(out + i * PANEL, b + i * stride, columns * sizeof(float))",
            "memset(out + i * PANEL, 0, columns * sizeof(float))",
        ),
        forward_chain_sign=("row.c0 = load(c) + row.c0", "row.c0 = load(c) - row.c0"),
    ),
    # Embedding
    *_of(
        "lucid/_ext/embedding.pyx",
        *op_tests("embedding"),
        sum_of_segments_sign=(
            "add_row(out, rows + index[i] * n, out, n)",
            "out[0] -= 2 * rows[index[i] * n]\n        add_row(out, rows + index[i] * n, out, n)",
        ),
        sum_of_segments_out_of_order=("add_row(out, rows + index[i] * n, out, n)", "add_row(out, rows + i * n, out, n)"),
        first_token_of_a_segment_lost=(
            "    for i in range(n_rows):\n        add_row(out",
            "    for i in range(1, n_rows):\n        add_row(out",
        ),
    ),
    *_of(
        "lucid/ops/embedding.py",
        *op_tests("embedding"),
        table_sign=("return RowsGradient(rows, values, shape)", "return RowsGradient(rows, -values, shape)"),
        tables_swapped=(
            "(positions.shape, position_ids), (types.shape, type_ids)",
            "(positions.shape, type_ids), (types.shape, position_ids % types.shape[0])",
        ),
    ),
    # Losses
    *_of(
        "lucid/_ext/cross_entropy.pyx",
        *op_tests("cross_entropy", "decoder_loss"),
        label_sign=("d_x[label] -= 1", "d_x[label] += 1"),
        d_logits_sign=("d_x[i] *= d_loss", "d_x[i] *= -d_loss"),
        label_0_lost=("if 0 <= label < n:\n        d_x", "if 0 < label < n:\n        d_x"),
        forward_sign=("<float> (log_sum - x[label])", "<float> (log_sum + x[label])"),
        sum_sign=("-out.top if out.top > -INFINITY", "out.top if out.top > -INFINITY"),
        joined_sign=(
            "lse[p] = <float> log_sum\n        losses[p] = <float> (log_sum - losses[p])",
            "lse[p] = <float> -log_sum\n        losses[p] = <float> (log_sum - losses[p])",
        ),
        logit_of_label_0_lost=("if 0 <= label < n:\n        label_logit", "if 0 < label < n:\n        label_logit"),
        sums_in_the_first_place=("&sums[0, 0, 0] + first_word // VOCABULARY_BLOCK", "&sums[0, 0, 0] + first_word // (1 << 30)"),
        logit_sign=("label_logit[0] = x[label]", "label_logit[0] = -x[label]"),
    ),
    *_of(
        "lucid/_ext/decoder.pyx",
        *op_tests("decoder"),
        forward_sign=("(log_sum - losses[p])", "(log_sum + losses[p])"),
    ),
    *_of(
        "lucid/ops/decoder.py",
        *op_tests("decoder"),
        d_x_of_the_last_words_alone=("out=d_x, add=words.start > 0)", "out=d_x)"),
        d_weight_of_the_last_rows_alone=("out=d_weight[words], add=add)", "out=d_weight[words])"),
        d_bias_of_the_last_rows_alone=("d_bias[words] + column_sum(d) if add", "column_sum(d) if add"),
        labels_of_the_first_words_alone=("labels, lse, d_losses, words.start, d,", "labels, lse, d_losses, 0, d,"),
        labels_of_the_first_words_alone_in_the_loss=("labels[rows], lse, d_losses, words.start, d,", "labels[rows], lse, d_losses, 0, d,"),
        sign_of_the_divisor=("np.float32(1.0 / divisor)", "np.float32(-1.0 / divisor)"),
        sign_of_the_factor=("gradient *= d_y", "gradient *= -d_y"),
        sign_of_d=("product(d, row_major[words], out", "product(-d, row_major[words], out"),
    ),
    *_of(
        "lucid/ops/total.py",
        *op_tests("total", "scale"),
        divisor=("np.float32(float(d_y) / divisor)", "np.float32(float(d_y) * divisor)"),
        sign=("np.float32(float(d_y) / divisor)", "np.float32(-float(d_y) / divisor)"),
        factor=("np.asarray(d_y * np.float32(factor))", "np.asarray(d_y)"),
        factor_sign=("np.asarray(d_y * np.float32(factor))", "np.asarray(d_y * np.float32(-factor))"),
    ),
    *_of("lucid/ops/reshape.py", *op_tests("reshape"), sign=("return (d_y.reshape(shape),)", "return (-d_y.reshape(shape),)")),
    # The GPU's decoder, emulated
    *_of(
        "lucid/_gpu/softmax.cuh",
        DECODER_ON_GPU,
        onehot_sign=("- (j == label ?", "+ (j == label ?"),
        rescaling_sign=("expf(sum.top - top)", "expf(top - sum.top)"),
        bias_sign=("(bias ? bias[j] : 0.0f)", "(bias ? -bias[j] : 0.0f)"),
        ignored_labels_count=("label < 0 ? 0.0f : (expf", "label < -1 ? 0.0f : (expf"),
        a_column_too_many=("* ROW_THREADS < n ? logit", "* ROW_THREADS <= n ? logit"),
    ),
    *_of(
        "lucid/_gpu/cross_entropy.cu", DECODER_ON_GPU, gradient_before_the_loss=("  __syncthreads();  // the gradient", "  // the gradient")
    ),
    *_of(
        "lucid/_gpu/decoder.cu",
        DECODER_ON_GPU,
        ties_by_falling_id=("<< 32 | ~static_cast<uint32_t>(word);", "<< 32 | static_cast<uint32_t>(word) + 1;"),
        two_zeros=("x == 0.0f ? 0.0f : x", "x"),
        the_same_word_again=("rank < limit &&", "rank <= limit &&"),
    ),
    *_of(
        "lucid/_gpu/decoder.py",
        DECODER_ON_GPU,
        chunks_lost=("beta=float(rows.start > 0)", "beta=0.0"),
        bias_gradient_sign=("d_bias += column_sum", "d_bias -= column_sum"),
        rows_not_padded=("-(-n_words // 8) * 8", "n_words + 1"),
    ),
    # Linear, rows, dropout
    *_of(
        "lucid/ops/linear.py",
        *op_tests("linear"),
        d_x_sign=("d_x = product(d_y, row_major[begin:end])", "d_x = -product(d_y, row_major[begin:end])"),
        d_weight_sign=("d_weight = product(d_y, x, transpose_a=True)", "d_weight = -product(d_y, x, transpose_a=True)"),
        residual_sign=("d_residual = d_y if has_residual", "d_residual = -d_y if has_residual"),
        columns_lost=(
            "d_weight = RowsGradient(rows, d_weight, weight.shape)",
            "d_weight = RowsGradient(slice(end - begin), d_weight, weight.shape)",
        ),
    ),
    *_of(
        "lucid/ops/layer_norm.py",
        *op_tests("layer_norm"),
        residual_sign=("return (d_x, d_gain, d_bias, d_x) if", "return (d_x, d_gain, d_bias, -d_x) if"),
    ),
    *_of(
        "lucid/ops/rows.py",
        *op_tests("rows"),
        a_row_taken_twice=("np.add.at(d_x, rows, d_y)", "d_x[rows] = d_y"),
        gather_sign=("np.add.at(d_x, rows, d_y)", "np.subtract.at(d_x, rows, d_y)"),
        scatter_sign=("return (np.take(d_y, rows, axis=0),)", "return (-np.take(d_y, rows, axis=0),)"),
    ),
    *_of(
        "lucid/_ext/philox.pyx",
        *op_tests("dropout", "attention"),
        sign=("else x[i] * scale", "else -x[i] * scale"),
        kept_and_dropped_swapped=("words[element % 4] < threshold", "words[element % 4] >= threshold"),
        scale_lost=("else x[i] * scale", "else x[i]"),
        place_lost=("first_element + (columns[i] if columns is not NULL else i)", "(columns[i] if columns is not NULL else i)"),
    ),
    *_of(
        "lucid/ops/dropout.py", *op_tests("dropout"), mask_not_reused=("return (_forward(d_y, **saved, keep=False)[0],)", "return (d_y,)")
    ),
    # The optimizer
    *_of(
        "lucid/_ext/adamw.pyx",
        OPS,
        OPTIM,
        "-k",
        "adamw or squares or norm",
        m_sign=("fma1(a1, g, beta1 * m[i])", "fma1(-a1, g, beta1 * m[i])"),
        v_of_the_wrong_beta=("fma1(a2 * g, g, beta2 * v[i])", "fma1(a2 * g, g, beta1 * v[i])"),
        v_sign=("fma1(a2 * g, g, beta2 * v[i])", "fma1(-a2 * g, g, beta2 * v[i])"),
        weight_sign=("- rate * m[i]", "+ rate * m[i]"),
        decay_lost=("w[i] = keep * w[i]", "w[i] = w[i]"),
        scale_lost=("g = d_w[i] * scale", "g = d_w[i]"),
        norm_sign=("            lanes[j] += value * value", "            lanes[j] -= value * value"),
        norm_of_a_tail_lost=("        lanes[i % ROW_LANES] += value * value", "        lanes[i % ROW_LANES] += 0"),
    ),
    *_of(
        "lucid/optim/adamw.py",
        OPTIM,
        one_count_for_all=("step=moments.n_updates", "step=self.n_steps"),
        clipping_lost=("scale=scale", "scale=1.0"),
        divisor_lost=("share = 1.0 / (float(divisor) or 1.0)", "share = 1.0"),
        divisor_not_in_the_norm=("grad_norm(self._parameters.values()) * share", "grad_norm(self._parameters.values())"),
        a_nan_goes_through=("if not math.isfinite(norm):", "if False:"),
        the_loss_goes_through=("if not math.isfinite(value):", "if False:"),
        norms_decay=("id(parameter) in plain or name.endswith", "name.endswith"),
    ),
    *_of(
        "lucid/optim/schedule.py",
        OPTIM,
        warm_up_off_by_one=("return step / self.n_warmup", "return (step - 1) / self.n_warmup"),
        cosine_sign=("(1 + math.cos(", "(1 - math.cos("),
    ),
    *_of("lucid/optim/clip.py", OPTIM, factor_upside_down=("(max_norm / norm)", "(norm / max_norm)")),
    # The tape
    *_of(
        "lucid/autograd.py",
        TAPE,
        a_second_way_back_lost=("waiting[target] = waiting[target] + _dense(d_x)", "waiting[target] = _dense(d_x)"),
        used_twice=("self.backward, self.saved, self.targets, self.parameters = None, None, (), ()", "pass"),
        any_gradient_taken=("want_gradient(self.name, d_out, self.result)", "pass"),
        versions_not_looked_at=("if parameter.version != version:", "if False:"),
        frozen_versions_not_looked_at=(
            "for x in tensors if x is not None and hasattr",
            "for x in tensors if x is not None and x.requires_grad and hasattr",
        ),
        recomputed_versions_not_looked_at=("(x, *parameters))", "(x,))"),
        checked_too_late=("    for node in nodes:\n        node.check()\n", ""),
        no_grad_left_on=("_recording.is_on = _recording.before.pop()", "_recording.before.pop()"),
        no_grad_everywhere=("class _Recording(threading.local):", "class _Recording:"),
        gradient_shared_with_the_caller=("gradient = np.array(gradient, np.float32)", "gradient = np.asarray(gradient, np.float32)"),
    ),
    *_of(
        "lucid/tensor.py",
        TAPE,
        second_gradient_alone=("total = self.grad + gradient", "total = gradient"),
        third_gradient_sign=("np.add(self.grad, gradient, out=self.grad)", "np.subtract(self.grad, gradient, out=self.grad)"),
        gradients_of_others_written=("self._is_own_grad = False  # the array", "self._is_own_grad = value is not None  # the array"),
    ),
    *_of("lucid/ops/op.py", TAPE, rows_replace=("total[self.rows] += self.values", "total[self.rows] = self.values")),
    # Training on the GPU, where nobody waits
    *_of(
        "lucid/training/trainer.py",
        "tests/gpu/test_training.py",
        "-k",
        "emulated and (loss_that_is_not or read_when)",
        loss_not_in_the_gradients=("loss.backward(loss.array * 0 + 1)", "loss.backward()"),
        place_not_put_back=("self.place, self._losses, self._batches_of_step = last.place, [], []", "pass"),
        read_at_once=("return before if self._is_late else self.take_step()", "return before or self.take_step()"),
    ),
    *_of(
        "lucid/models/bert/room.py",
        "tests/gpu/test_room.py",
        way_back_forgotten=("with said(), backward_within(said):", "with said():"),
        rows_forgotten=("len(rows.index)", "0"),
        logits_forgotten=("(free - ROWS_AT_ONCE * of_logits) / of_token", "free / of_token"),
    ),
    # The GPU's kernels, which the emulator runs
    *_of(
        "lucid/_gpu/norm.cuh",
        *gpu_tests("layer_norm or embedding"),
        variance_of_nothing=("squares = fmaf(centred, centred, squares);", "squares = centred;"),
        bias_sign=("* r, g[j], values[j]);", "* r, g[j], -values[j]);"),
    ),
    *_of(
        "lucid/_gpu/layer_norm.cu",
        *gpu_tests("layer_norm"),
        normal_sign=("- (values[j] - mu) * r * gn_mean)", "+ (values[j] - mu) * r * gn_mean)"),
        mean_sign=("(d[j] * g[j] - g_mean", "(d[j] * g[j] + g_mean"),
        a_warp_lost=("for (int w = 0; w < n_warps; ++w)", "for (int w = 1; w < n_warps; ++w)"),
        missing_barrier=("  __syncthreads();\n", "\n"),
    ),
    *_of(
        "lucid/_gpu/columns.cu",
        *gpu_tests("linear"),
        slope_forgotten=("d[j] *= slope(before[j], activation);", "d[j] *= 1;"),
        a_group_lost=(
            "for (int y = 1; y < 8; ++y) sum[j] += sums[y][j][threadIdx.x];",
            "for (int y = 2; y < 8; ++y) sum[j] += sums[y][j][threadIdx.x];",
        ),
        parts_sign=("sum += parts[static_cast<int64_t>(p) * n + column];", "sum -= parts[static_cast<int64_t>(p) * n + column];"),
    ),
    *_of(
        "lucid/_gpu/activation.cuh",
        *gpu_tests("activation"),
        erf_sign=("return fmaf(half, erff(x * 0.70710678f), half);", "return fmaf(half, erff(x * 0.70710678f), -half);"),
        density_sign=("return fmaf(x, 0.39894228f", "return fmaf(-x, 0.39894228f"),
        sigmoid_slope_sign=("return fmaf(factor * e * s, s,", "return fmaf(-factor * e * s, s,"),
    ),
    *_of(
        "lucid/_gpu/activation.cu",
        *gpu_tests("linear"),
        bias_sign=("values[j] += more[j];\n  }\n  if (before", "values[j] -= more[j];\n  }\n  if (before"),
        residual_before_the_activation=("if (before != nullptr) write(before + at", "if (before == nullptr) write(y + at"),
    ),
    *_of("lucid/_gpu/philox.cuh", *gpu_tests("random_numbers"), a_round_less=("round < 10", "round < 9")),
    *_of(
        "lucid/_gpu/embedding.cu",
        *gpu_tests("embedding or gather"),
        position_sign=("values[j] + of_type[j] + of_position[j]", "values[j] + of_type[j] - of_position[j]"),
        a_token_lost=("for (int i = begin; i < end; ++i)", "for (int i = begin + 1; i < end; ++i)"),
    ),
    # What is not for NVIDIA's libraries, and what they get wrong
    *_of(
        "lucid/_gpu/libraries.py",
        LIBRARIES,
        faults_forgotten=('self._faults[kind] = f"', 'self._faults[kind] = "" and f"'),
        nan_is_near=("if not distance <= bound:", "if distance > bound:"),
    ),
    *_of(
        "lucid/_gpu/linear.py",
        LIBRARIES,
        library_before_the_activation=("residual is None and number == NONE:", "residual is None:"),
        library_without_the_slope=("if has_bias and before is None else", "if has_bias else"),
    ),
    *_of("lucid/_gpu/cudnn_attention.py", LIBRARIES, keys_nobody_asks=("np.diff(query_starts) > 0, np", "np.diff(key_starts) > 0, np")),
    *_of("lucid/_gpu/rows.cu", *gpu_tests("rows"), tail_lost=("j < min(n, i + N)", "j + 1 < min(n, i + N)")),
    *_of(
        "lucid/_gpu/adamw.cu",
        "tests/gpu/test_adamw.py",
        "tests/gpu/test_model.py",
        "-k",
        "the_cpus or finite",
        step_sign=("update.weight[i] - update.rate * m", "update.weight[i] + update.rate * m"),
        decay_forgotten=("update.keep * update.weight[i]", "update.weight[i]"),
        copy_forgotten=("if (update.copy == nullptr) continue;", "continue;"),
        not_finite_forgotten=("if (!isfinite(norm[0])) return;", ""),
        clipping_forgotten=("sum <= most ? share : share * (most / sum)", "share"),
    ),
    *_of(
        "lucid/nn/parameter.py",
        "tests/gpu/test_model.py",
        "-k",
        "written",
        a_copy_outlives_a_write=(
            "            finally:\n                self._copy = None\n",
            "            finally:\n                pass\n",
        ),
    ),
]
