"""Systems that answer a workload, behind one interface; each imports its engine when it is made."""
