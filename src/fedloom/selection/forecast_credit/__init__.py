"""Candidates credited by what they would teach the outputs, forecast from one forward pass: no candidate trains."""
