def print_study(console, result, page):
    console.print(result.summary())
