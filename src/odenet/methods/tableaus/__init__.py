"""Coefficients of the Runge-Kutta methods: one file for each method or family."""
