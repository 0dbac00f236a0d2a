"""pyrqlite against every node of a running cluster, given by HTTP port.

Whoever leads, all the other nodes are followers, so each thing is asked of each node.
Prints what it did and ends with `N passed, N failed`.
"""

import logging
import sys

import pyrqlite.dbapi2 as dbapi2

ROWS = [
    (1, "O'Brien; -- quoted", 1.5, None),
    (2, "snowman \u2603", -0.25, "two"),
    (3, "", 1e300, "three"),
]


def connect(port):
    return dbapi2.connect(host="127.0.0.1", port=int(port), timeout=30)


def create(port):
    with connect(port).cursor() as cursor:
        cursor.execute("CREATE TABLE pyrqlite_check (id INTEGER PRIMARY KEY, name TEXT, size REAL, note TEXT)")


def insert_with_parameters(port, row):
    with connect(port).cursor() as cursor:
        cursor.execute("INSERT INTO pyrqlite_check (id, name, size, note) VALUES (?, ?, ?, ?)", row)
        assert cursor.lastrowid == row[0], cursor.lastrowid


def insert_many(port):
    with connect(port).cursor() as cursor:
        cursor.executemany("INSERT INTO pyrqlite_check (id, name) VALUES (?, ?)", [(10, "ten"), (11, "eleven")])
        assert cursor.rowcount == 2, cursor.rowcount


def select(port):
    with connect(port).cursor() as cursor:
        cursor.execute("SELECT id, name, size, note FROM pyrqlite_check WHERE id < ? ORDER BY id", (10,))
        found = [tuple(row) for row in cursor.fetchall()]
        assert found == ROWS, found
        assert [column[0] for column in cursor.description] == ["id", "name", "size", "note"], cursor.description
        cursor.execute("SELECT name FROM pyrqlite_check WHERE id = :id", {"id": 2})
        assert cursor.fetchone()["name"] == ROWS[1][1]
        cursor.execute("SELECT count(*) AS n FROM pyrqlite_check", consistency="strong")
        assert cursor.fetchone()["n"] == 5


def update(port):
    with connect(port).cursor() as cursor:
        cursor.execute("UPDATE pyrqlite_check SET note = ? WHERE id >= ?", ("late", 10))
        assert cursor.rowcount == 2, cursor.rowcount


def refused(port):
    with connect(port).cursor() as cursor:
        try:
            cursor.execute("SELEC 1")
        except dbapi2.Error as error:
            assert "syntax error" in str(error), error
        else:
            raise AssertionError("a statement that is not SQL was accepted")


def main(ports):
    logging.disable(logging.CRITICAL)  # what is refused on purpose would look like a failure
    checks = [("create", create, ports[0])]
    for index, row in enumerate(ROWS):
        port = ports[index % len(ports)]
        checks.append((f"insert row {row[0]} with parameters", lambda port, row=row: insert_with_parameters(port, row), port))
    checks.append(("insert many in one transaction", insert_many, ports[-1]))
    for port in ports:
        checks += [("select", select, port), ("update", update, port), ("refuse what is not SQL", refused, port)]
    failed = 0
    for name, check, port in checks:
        try:
            check(port)
            print(f"ok      {name} at port {port}")
        except Exception as error:  # every failure is shown, and the rest still runs
            failed += 1
            print(f"FAILED  {name} at port {port}: {type(error).__name__}: {error}")
    print(f"{len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
