"""Spiking image classification: MLP, convolutions, VGG or ResNet of integrate-and-fire neurons (torch, snntorch)."""
