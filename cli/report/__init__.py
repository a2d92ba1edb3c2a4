"""The page of `evaluate --report`: what is shown, how it is drawn, and the page around it."""
