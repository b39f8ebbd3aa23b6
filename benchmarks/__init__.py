"""Side-by-side measurements, each naming its rival and its limit."""
