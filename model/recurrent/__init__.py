"""Networks that go through a sequence step by step: cells, layers of them, and the families built of these."""
