"""REFINE in JAX: defends classifiers against backdoors by model reprogramming."""
