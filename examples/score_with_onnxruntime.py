"""Score videos with ONNX Runtime: this package samples, an exported network scores.

sama export packaged -o model.onnx
python examples/score_with_onnxruntime.py model.onnx video.mp4
"""

import json
import sys

import onnxruntime

import sama

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
sampler = sama.VideoSampler(about["mode"], grid=about["grid"], fragment=about["fragment"], layout=about["layout"])

for path in sys.argv[2:]:
    with sama.open_video(path) as video:
        frames, span = video.info.num_frames, about["clip_len"] * about["interval"]
        number = about["num_clips"]
        if about.get("whole_clips"):  # as many as fit
            number = max(1, min(number, frames // span))
        indices = sama.frame_indices(frames, about["clip_len"], number, about["interval"]).reshape(number, -1)
        scores = [session.run(["score"], {"clip": clip[None].numpy()})[0][0] for clip in sampler.stream(video, indices)]
    print(f"{sum(scores) / number:9.4f}  {path}")
