"""experiments/*.yaml say what is run, results/ keeps every result for good, docs/benchmarks.md is made from them."""
