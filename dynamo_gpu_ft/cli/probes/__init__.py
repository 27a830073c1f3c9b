"""What the doctor looks at, one file per kind; each probe answers with one `Item` and may hang or raise without harm to the others.

Called by `cli/doctor.py`, which also runs as a plain file: nothing but the standard library is imported here.
"""
