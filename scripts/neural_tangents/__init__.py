"""neural-tangents as an oracle and a rival, in an environment of its own.

    python3.11 -m venv ENV
    ENV/bin/pip install --no-deps -r scripts/neural_tangents/requirements.txt
    ENV/bin/python -m scripts.neural_tangents.golden           # writes tests/golden/*.npz
    python -m benchmarks … --neural-tangents ENV/bin/python    # times it beside ours

The project itself imports none of these modules but ``cases``, which needs numpy only.
"""
