"""Reads an Iceberg table by its metadata file, creates the view of connect/sql/iceberg.sql over it, and prints the rows of
the table or the view as JSON lines: read_iceberg.py METADATA SQL TABLE"""

import json
import pathlib
import sys

import duckdb
from pyiceberg.table import StaticTable

metadata, sql, table = sys.argv[1:]
bar_reports = StaticTable.from_metadata(metadata).scan().to_arrow()
connection = duckdb.connect()
connection.execute("set timezone = 'UTC'")
connection.register("arrow", bar_reports)
connection.execute("create table bar_reports as select * from arrow")
connection.execute(pathlib.Path(sql).read_text())
result = connection.execute(f"select * from {table} order by from_beat")
names = [column[0] for column in result.description]
for row in result.fetchall():
    print(json.dumps(dict(zip(names, row)), default=lambda instant: instant.isoformat()))
