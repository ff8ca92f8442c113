import pytest
import torch

from argen.errors import UserError
from argen.layers.rope import apply_rope, rope_table_1d, rope_table_2d, with_prefix


def pairs(head_dim, n, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(1, 1, n, head_dim, generator=draws)


def test_turns_adjacent_channels_by_the_position():
    table, x = rope_table_1d(5, 8, base=100.0), pairs(8, 5)
    turned = apply_rope(x, table)
    numbers = torch.view_as_complex(x.reshape(1, 1, 5, 4, 2))
    for position in range(5):
        for pair in range(4):
            angle = torch.tensor(position * 100.0 ** (-2 * pair / 8))
            expected = numbers[0, 0, position, pair] * torch.exp(1j * angle)
            found = turned[0, 0, position, 2 * pair : 2 * pair + 2]
            torch.testing.assert_close(found, torch.view_as_real(expected))


def test_products_depend_on_the_distance_alone():
    table = rope_table_1d(12, 16)
    q, k = pairs(16, 1).expand(1, 1, 12, 16), pairs(16, 1, seed=1).expand(1, 1, 12, 16)
    products = (apply_rope(q, table) @ apply_rope(k, table).transpose(2, 3))[0, 0]
    for distance in range(-5, 6):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apply_rope(q, table).norm(dim=-1), q.norm(dim=-1))


def test_rows_and_columns_have_a_half_each():
    table = rope_table_2d((3, 5), 16).view(3, 5, 8, 2)
    assert torch.equal(table[:, :1, :4].expand(3, 5, 4, 2), table[:, :, :4])
    assert torch.equal(table[:1, :, 4:].expand(3, 5, 4, 2), table[:, :, 4:])
    torch.testing.assert_close(table[:3, 0, :4], table[0, :3, 4:])
    torch.testing.assert_close(table[:, 0, :4], rope_table_1d(3, 8))


def test_positions_may_come_in_any_order():
    table, x, order = rope_table_1d(6, 8), pairs(8, 6), torch.tensor([3, 0, 5])
    torch.testing.assert_close(
        apply_rope(x[:, :, order], table[order]), apply_rope(x, table)[:, :, order]
    )
    rows = table[order].expand(2, 1, 3, 4, 2)
    torch.testing.assert_close(
        apply_rope(x[:, :, order].expand(2, 1, 3, 8), rows)[1:], apply_rope(x, table)[:, :, order]
    )


def test_prefixes():
    table, x = rope_table_1d(4, 8), pairs(8, 6)
    identity = with_prefix(table, 2, kind="identity")
    torch.testing.assert_close(apply_rope(x, identity)[:, :, :2], x[:, :, :2])
    zero = apply_rope(x, with_prefix(table, 2, kind="zero"))
    assert not zero[:, :, :2].any()
    torch.testing.assert_close(zero[:, :, 2:], apply_rope(x[:, :, 2:], table))


def test_bfloat16_stays_bfloat16():
    x = pairs(8, 4).bfloat16()
    assert apply_rope(x, rope_table_1d(4, 8)).dtype == torch.bfloat16


def test_bad_widths_are_refused():
    with pytest.raises(UserError, match="even"):
        rope_table_1d(4, 7)
    with pytest.raises(UserError, match="divisible by 4"):
        rope_table_2d((2, 2), 6)
    with pytest.raises(UserError, match="identity"):
        with_prefix(rope_table_1d(4, 8), 1, kind="none")
