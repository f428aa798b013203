"""Tables: aligned text without frames, numbers never cut."""

from support.printing import printed

from pml_cli.report.tables.layout import key_value_table, plain_table, titled


def test_text_is_left_aligned_and_numbers_right_aligned():
    table = plain_table("law", "n", text=["law"])
    table.add_row("hill", "7")
    table.add_row("exp", "12345")
    assert printed(table) == ["law       n", "hill      7", "exp   12345"]


def test_where_there_is_no_room_text_folds_and_numbers_stay_whole():
    table = plain_table("law", "n", text=["law"])
    table.add_row("a law with a long name", "1234567890")
    lines = printed(table, width=20)
    assert "1234567890" in lines[1]
    assert len(lines) > 2 and all(len(line) <= 20 for line in lines)


def test_columns_that_do_not_fold_are_named():
    table = plain_table("law", "reason", text=["law", "reason"], folded=["reason"])
    table.add_row("hill with b", "three words of explanation")
    lines = printed(table, width=30)
    assert lines[1].startswith("hill with b  ")


def test_keys_stand_beside_what_is_said_about_them():
    lines = printed(key_value_table([("what", "rank 2"), ("loss", "7.6 nats")]))
    assert lines == ["what  rank 2", "loss  7.6 nats"]


def test_a_title_stands_above_its_table_and_an_empty_line_below():
    table = plain_table("rank")
    table.add_row("2")
    assert printed(titled("by rank", table)) == ["by rank", "rank", "   2", ""]
