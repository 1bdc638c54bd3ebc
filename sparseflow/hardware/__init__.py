"""HOW it runs. Masks in, fast layers out; knows no algorithm."""
