"""A model divided over ranks: by torch's FSDP2 and DTensor, with Aquila2's own plan of what goes where."""
