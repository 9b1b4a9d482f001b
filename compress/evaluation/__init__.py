"""What a model scores, costs and weighs, measured on the file that ships."""
