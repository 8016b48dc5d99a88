"""Texts to the pieces that the `tokenizers` library makes of them, before any template."""

from collections.abc import Iterable

from tokenizers import Encoding, Tokenizer


def listed(texts: Iterable[str], name: str) -> list[str]:
    """Give texts as a list; a lone str is refused, since it would be taken for a list of characters."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} is a {type(texts).__name__}, wanted a list of str; for one text use encode_plus or encode")
    return list(texts)


def split(backend: Tokenizer, texts: list[str], name: str, has_places: bool) -> list[Encoding]:
    """Give the tokens of each text, without special tokens; several texts in parallel.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
    texts : list of str
    name : str
        What an error calls a text; "{}" in it becomes the text's place in the list.
    has_places : bool
        Whether offsets and word ids are needed; a batch is faster without.

    Returns
    -------
    list of tokenizers.Encoding

    Raises
    ------
    TypeError
        A text is not a str.
    ValueError
        A text has a lone surrogate.
    """
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name.format(place)} is a {type(text).__name__} ({text!r:.60}), wanted a str")
    try:
        # One text stays in this thread: a later fork must not find the library's thread pool in use.
        if len(texts) == 1:
            return [backend.encode(texts[0], add_special_tokens=False)]
        if has_places:
            return backend.encode_batch(texts, add_special_tokens=False)
        return backend.encode_batch_fast(texts, add_special_tokens=False)
    except TypeError as error:
        raise ValueError(_unencodable(texts, name)) from error


def _unencodable(texts: list[str], name: str) -> str:
    """Say where the first character is that no UTF-8 can hold."""
    for place, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return (
                f"{name.format(place)} has a lone surrogate (U+{ord(text[error.start]):04X} at character "
                f"{error.start}), which is no text; read the file with the right encoding, or replace it: "
                'text.encode("utf-8", "replace").decode()'
            )
    return f"the tokenizers library refused {name.format('...')}"
