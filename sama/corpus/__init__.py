"""Labelled sets of videos or images, made from undegraded ones: no votes and no download are needed.

    sources   the demo's contents: photographs and clips that installed packages ship, and collages of them
    collage   synthetic scenes of pieces of photographs
    camera    a photograph, a clip or a collage becomes undegraded frames
    degrade   the kinds of degradation and their strengths
    codec     frames to files and back
    i420      the planes of frames in memory
    label     the demo's label, measured against the undegraded frames
    build     writes a set from any contents with any label, and resumes an interrupted one
    make      the demo's sets: their settings, and `make`

The command is `sama demo-data FOLDER [--size full] [--images]`, or `python -m sama.demo` with the same arguments.
"""
