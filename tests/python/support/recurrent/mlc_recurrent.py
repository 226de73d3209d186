"""Models with recurrent layers as MLC-LLM compiles them.

Their libraries create their state through `vm.builtin.rnn_state_create` and set the state after the
last token alone; `batch_prefill` and `batch_verify` take one sequence, `batch_decode` several.
"""

from __future__ import annotations

import pytest
import tvm_ffi

from recurrent_models import config_of

CREATE = "kvctl_test.rnn_state_create"


def _create_state(sizes, num_layers, init_values):
    """Create a state as TVM's frontend emits it; kvctl's does not read the getters and setters."""

    def unused(*arguments):
        raise AssertionError("kvctl copies rows by itself")

    functions = [tvm_ffi.convert(unused)] * len(init_values)
    create = tvm_ffi.get_global_func("vm.builtin.rnn_state_create")
    return create(num_layers, sizes[0], sizes[1], functions, functions, init_values)


def _as_mlc_does(patch):
    from tvm import relax

    from kvctl.models.build import recurrent_library
    from kvctl.models.graph import gated_delta_net, rnn_state

    model = gated_delta_net.RecurrentForCausalLM
    hidden, metadata = model._hidden, recurrent_library._metadata

    def one_sequence(self, x, caches, *, emit_steps):
        if x.shape[0] == 1:
            builder = relax.BlockBuilder.current()
            roots = relax.call_pure_packed(
                "kvctl.recurrent.root_shape", caches[-1]._expr, ty_args=relax.ShapeType(ndim=1)
            )
            builder.match_cast(builder.emit(roots), relax.ShapeType([1]))
        return hidden(self, x, caches, emit_steps=emit_steps)

    def create(self, max_batch_size, max_history_size):
        config = self.config
        zeros = [rnn_state._emit(relax.op.zeros(s.shape, s.dtype)) for s in config.state_specs]
        created = relax.call_pure_packed(
            CREATE,
            relax.ShapeExpr([max_batch_size, max_history_size]),
            relax.prim_value(config.num_recurrent_layers),
            relax.Tuple(zeros),
            ty_args=relax.AnyType(),
        )
        return rnn_state.RNNState(_expr=created, _name="rnn_state")

    def says_nothing(*arguments, **options):
        said = metadata(*arguments, **options)
        del said["kvctl"]["recurrent"]
        return said

    patch.setattr(model, "_hidden", one_sequence)
    patch.setattr(model, "create_rnn_state", create)
    patch.setattr(recurrent_library, "_metadata", says_nothing)


@pytest.fixture(scope="session")
def mlc_recurrent(tmp_path_factory):
    """Directories by kind ("delta" or "hybrid"), each compiled when it is first asked for."""
    directories = {}

    def get(kind):
        if kind not in directories:
            config = config_of(kind)
            from kvctl.models.build.recurrent_library import compile_recurrent

            tvm_ffi.register_global_func(CREATE, _create_state, override=True)
            with pytest.MonkeyPatch.context() as patch:
                _as_mlc_does(patch)
                path = tmp_path_factory.mktemp("mlc") / kind
                directories[kind] = compile_recurrent(config, path, emit_steps=False)
        return directories[kind]

    return get
