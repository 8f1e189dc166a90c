"""How steps are computed: the same maths as the plain path, in less time and memory, with a plain reference beside."""
