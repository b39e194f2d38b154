"""What the tests share: packets made by hand, and models that are slow and obviously right."""
