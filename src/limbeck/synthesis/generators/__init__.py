"""Pictures as the output of a network that is trained by what a teacher, and a student, say about them."""
