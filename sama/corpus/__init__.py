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

and, of anybody's masters, with VMAF as the label (`sama corpus`):

    ffmpeg    the FFmpeg program: encoders, libvmaf
    vmaf      the label
    probe     measures of a picture: detail, blocks, black bars
    masters   files judged: masters, or refused
    contents  parts of photographs, filmed, and shots of videos
    kinds     degradations by real encoders and others
    stills    the same for still images, their files and label
    budget    what a set costs, measured on a sample
    corpus    the whole: plan, set, tables

The demo's command is `sama demo-data FOLDER [--size full] [--images]`, or `python -m sama.demo` with the same
arguments.
"""
