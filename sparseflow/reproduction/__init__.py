"""Published claims, checked: `sparseflow reproduce`."""
