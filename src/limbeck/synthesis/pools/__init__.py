"""Pictures that nobody optimises: crops of one photograph, unrelated images, folders of them, procedural controls."""
