"""Why a model says what it says: what is seen inside of it, and how much of the input an answer is due to."""
