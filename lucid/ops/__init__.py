"""Operations: one file each, the only room that knows both devices."""
