"""HeuriMentor, the trainer around aquila2: its data plane, its ledger, and folders that prove that they are whole."""
