"""The site's side of the identity switch: a drop-in `glexec` behind sudo.

Everything but `install` also runs on a node's own interpreter (Python >= 3.6, standard library
only, `python3 -IS`), most of it as root. Annotations that such an interpreter could not evaluate
are quoted, and modules that cost milliseconds to import (json, signal, socket, typing) are
imported late or not at all: the root part is on the path of every call.
"""
