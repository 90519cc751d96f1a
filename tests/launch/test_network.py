"""Interfaces, and the board that hands out cells."""

import psutil
import pytest

from launch.board import Board, Failure
from launch.network import address_towards, interface_towards


def test_the_loopback_is_reached_by_the_loopback():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert "127.0.0.1" in {entry.address for entry in psutil.net_if_addrs()[interface_towards("127.0.0.1")]}


def failed(board: Board, grace_s: float = 0.0) -> list[dict]:
    return [event for event in board.drain(grace_s) if event["event"] == "failed"]


class TestBoard:
    @pytest.fixture
    def board(self) -> Board:
        board = Board([3, 5], world_size=2)
        for rank in range(2):
            board.join(rank, f"process {rank}")
        return board

    def start(self, board: Board) -> int:
        number = board.next_cell()
        for rank in range(2):
            board.begin(number, rank)
        return number

    def test_cells_are_given_in_order_until_all_are_done(self, board):
        for expected in (3, 5):
            number = self.start(board)
            assert number == expected
            board.finish(number, {})
        assert board.next_cell() is None
        assert board.unfinished() == []

    def test_the_cause_of_a_failure_is_told_rather_than_its_echo(self, board):
        number = self.start(board)
        board.fail(number, Failure(0, "connection closed by peer", "…", by_peer=True))
        assert failed(board, grace_s=60) == []  # worker 1 may still say why
        board.fail(number, Failure(1, "ValueError: no such class", "…", by_peer=False))
        (event,) = failed(board, grace_s=60)
        assert event["message"] == "worker 1: ValueError: no such class"
        assert failed(board) == []

    def test_a_silent_worker_has_died(self, board):
        number = self.start(board)
        board.fail(number, Failure(0, "connection closed by peer", "…", by_peer=True))
        (event,) = failed(board)
        assert "worker 1 (process 1) died" in event["message"]

    def test_a_group_that_dies_with_all_its_workers_fails_the_cell_that_ran(self, board):
        number = self.start(board)
        board.join(0, "process 7")
        (event,) = failed(board)
        assert event["cell"] == number
        assert board.next_cell() == 5

    def test_a_cell_that_not_all_had_begun_is_given_again(self, board):
        number = board.next_cell()
        board.begin(number, 0)
        board.join(0, "process 7")
        assert failed(board) == []
        assert board.next_cell() == number

    def test_a_failure_after_the_result_changes_nothing(self, board):
        number = self.start(board)
        board.finish(number, {"metrics": {}})
        board.fail(number, Failure(1, "late", "…", by_peer=True))
        assert failed(board) == []
