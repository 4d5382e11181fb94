"""Deep generative families trained side by side on grey images, with exact or bounded bits per dimension (torch)."""
