"""The command `hpcvol`: thin files over functions of the library; none loads torch or MPI for --help."""
