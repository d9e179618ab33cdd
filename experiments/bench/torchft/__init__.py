"""torchft, which is nobody's of this project, on the race's models, batches, links and targets."""
