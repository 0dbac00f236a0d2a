"""Uses a node through pyrqlite as an application would: creates, inserts with parameters, selects.

Usage: check.py HOST:PORT [HOST:PORT ...]

Writes through the first address and reads through each of them. Exits with 0 when every value comes
back as it went in, and otherwise with 1 and what differed.
"""

import datetime
import sys

import pyrqlite.dbapi2 as dbapi2

ROWS = [
    (1, "fiona", 2.5, b"\x00\x01\xff", None),
    (2, "O'Brien says \"hi\"", -0.1, b"", 7),
    (4611686018427387904, "größe 日本 🦀", 1e300, b"plain", -9223372036854775808),
    (4611686018427387905, "", 0.1 + 0.2, b"\xff" * 1000, 9223372036854775807),
]
MOMENT = datetime.datetime(2004, 2, 14, 7, 15, 30, 500000)


class Mismatch(Exception):
    """What came back is not what went in."""


def expect(what, found, expected):
    """Compares a value and its type."""
    if found != expected or type(found) is not type(expected):
        raise Mismatch(f"{what}: expected {expected!r}, found {found!r}")


def connect(address, **options):
    """Connects to HOST:PORT."""
    host, port = address.rsplit(":", 1)
    return dbapi2.connect(host=host.strip("[]"), port=int(port), timeout=30, **options)


def write(address):
    """Creates a table, and changes it in every way that pyrqlite has."""
    cursor = connect(address).cursor()
    cursor.execute("DROP TABLE IF EXISTS pyrqlite_check")
    cursor.execute(
        "CREATE TABLE pyrqlite_check (id INTEGER PRIMARY KEY, name TEXT, score REAL, data BLOB, other INTEGER)"
    )
    cursor.execute("INSERT INTO pyrqlite_check VALUES (?, ?, ?, ?, ?)", ROWS[0])
    expect("lastrowid", cursor.lastrowid, 1)
    cursor.executemany("INSERT INTO pyrqlite_check VALUES (?, ?, ?, ?, ?)", ROWS[1:])
    expect("rowcount of executemany", cursor.rowcount, len(ROWS) - 1)
    cursor.execute("INSERT INTO pyrqlite_check (id, name) VALUES (:id, :name)", {"id": 3, "name": "gone"})
    cursor.execute("UPDATE pyrqlite_check SET name = ? WHERE id IN (?, ?)", ("going", 3, 4))
    expect("rowcount of an update", cursor.rowcount, 1)
    cursor.execute("DELETE FROM pyrqlite_check WHERE name = ?", ("going",))
    expect("rowcount of a delete", cursor.rowcount, 1)
    cursor.execute("DROP TABLE IF EXISTS pyrqlite_times")
    cursor.execute("CREATE TABLE pyrqlite_times (at TIMESTAMP)")
    cursor.execute("INSERT INTO pyrqlite_times VALUES (?)", (MOMENT,))


def read(address):
    """Reads it all back."""
    cursor = connect(address).cursor()
    cursor.execute("SELECT id, name, score, data, other FROM pyrqlite_check ORDER BY id")
    expect("columns", [column[0] for column in cursor.description], ["id", "name", "score", "data", "other"])
    rows = cursor.fetchall()
    expect("number of rows", len(rows), len(ROWS))
    for row, expected in zip(rows, ROWS):
        for at, value in enumerate(expected):
            expect(f"row {expected[0]}, column {at}", row[at], value)
    cursor.execute("SELECT COUNT(*) AS count FROM pyrqlite_check WHERE id > ?", (1,))
    expect("count", cursor.fetchone()["count"], len(ROWS) - 1)
    cursor.execute("SELECT id FROM pyrqlite_check WHERE id < 0")
    expect("rows of nothing", cursor.fetchall(), [])
    for level in ("none", "weak", "linearizable", "strong"):
        cursor.execute("SELECT 1 AS one", consistency=level)
        expect(f"a read at level {level}", cursor.fetchone()[0], 1)
    typed = connect(address, detect_types=dbapi2.PARSE_DECLTYPES).cursor()
    typed.execute("SELECT at FROM pyrqlite_times")
    expect("a timestamp", typed.fetchone()[0], MOMENT)


def fail(address):
    """Mistakes are told, and do no harm."""
    cursor = connect(address).cursor()
    for statement, words in [
        ("SELECT nonsense FROM nowhere", "nowhere"),
        ("INSERT INTO pyrqlite_check (id) VALUES (1)", "UNIQUE"),
        ("INSERT INTO nowhere VALUES (1)", "nowhere"),
    ]:
        try:
            cursor.execute(statement)
        except dbapi2.Error as error:
            if words not in str(error):
                raise Mismatch(f"{statement}: the error does not say {words!r}: {error}") from error
        else:
            raise Mismatch(f"{statement}: no error")


def main(addresses):
    """Runs all of it."""
    if not addresses:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        write(addresses[0])
        for address in addresses:
            read(address)
            fail(address)
    except (Mismatch, dbapi2.Error, OSError) as error:
        print(f"pyrqlite check failed: {error}", file=sys.stderr)
        return 1
    print(f"pyrqlite check passed at {', '.join(addresses)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
