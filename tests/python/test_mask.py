import pickle

import numpy as np
import pytest
from tvm_ffi import get_global_func

from kvctl import Mask


def test_picture_of_a_tree():
    #   0   2
    #   |  / \
    #   1 3   4
    assert Mask.tree([-1, 0, -1, 2, 2]).picture(5, 7).splitlines() == [
        "##|#....",
        "##|##...",
        "##|..#..",
        "##|..##.",
        "##|..#.#",
    ]


def test_crosses_the_ffi_as_an_int32_tensor():
    mask = Mask.window(3, 1) & ~Mask.ranges([[(0, 2)], []])
    tensor = get_global_func("testing.echo")(mask)
    back = Mask.decode(np.from_dlpack(tensor))
    assert (back.to_numpy(2, 9) == mask.to_numpy(2, 9)).all()
    assert (pickle.loads(pickle.dumps(mask)).encode() == mask.encode()).all()


def test_rejects_floats_and_shapes():
    with pytest.raises(TypeError, match="additive float mask"):
        Mask.full(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="2 x 3"):
        Mask.dense(np.ones((2, 3), bool))
    with pytest.raises(ValueError, match="parent of tree node 1 is -2"):
        Mask.tree([-1, -2])
    with pytest.raises(ValueError, match="parent of tree node 1 is 1"):
        Mask.tree([-1, 1]).picture(2, 2)
