"""The deployment side: the result runs with onnxruntime alone, neither torch nor compress installed.

python examples/deploy.py shrunk/int8.onnx photo.jpg --classes classes.txt
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image", help="an image, or an .npy file of pixels (H, W, 3)")
    parser.add_argument("--classes", help="a file with one class name a line")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--mean", type=float, nargs="+", default=(0.485, 0.456, 0.406))
    parser.add_argument("--std", type=float, nargs="+", default=(0.229, 0.224, 0.225))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    session = onnxruntime.InferenceSession(arguments.model, options, providers=["CPUExecutionProvider"])

    pixels = read(arguments.image, arguments.side).astype(np.float32) / 255
    x = ((pixels - np.float32(arguments.mean)) / np.float32(arguments.std)).transpose(2, 0, 1)[None]
    scores = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(x, np.float32)})[0][0]

    names = [str(index) for index in range(len(scores))]
    if arguments.classes:
        names = Path(arguments.classes).read_text().splitlines()
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5]
    for index in best:
        print(f"{shares[index]:7.2%}  {names[index]}")
    return int(best[0])


def read(path, side):
    """Pixels (side, side, 3): the shorter side to side·256/224, then the centre."""
    if path.endswith(".npy"):
        return np.load(path)
    from PIL import Image

    image = Image.open(path).convert("RGB")
    scale = side * 256 / 224 / min(image.size)
    image = image.resize([round(edge * scale) for edge in image.size])
    left, top = ((edge - side) // 2 for edge in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side)))


if __name__ == "__main__":
    main()
