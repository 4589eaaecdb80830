def best_gamma(alpha,c,most):
    return max(range(most+1), key=lambda g: ((g+1) if alpha>=1 else (1-alpha**(g+1))/(1-alpha))/(g*c+1))
