from fedpp.recipe import Recipe as Recipe
