"""The tables of the ledger, and the migrations from older versions of them."""

VERSION = 5
SCHEMA = """
create table if not exists trials (
    name text primary key,
    hash text not null,
    cell text not null,
    split text not null,
    path text not null default '',
    status text not null default 'waiting',
    owner text,
    beat integer not null default 0,
    attempts integer not null default 0,
    error text,
    score real,
    pack text
);
create index if not exists by_status on trials (status);
create index if not exists by_cell on trials (cell, split, status);
create index if not exists by_pack on trials (pack);
create table if not exists control (stopping integer not null);
insert into control select 0 where not exists (select * from control);
"""
MIGRATIONS = {
    # Version 3 stored results in the ledger.
    3: (
        "alter table trials add column path text not null default ''",
        "alter table trials add column score real",
        "update trials set path = case split when 'validation' then 'tuning/' else 'trials/' end "
        "|| name",
        "alter table trials drop column result",
    ),
    # Version 4 stored the ends of leases, as times; at time 0 one had been ended early.
    4: (
        "update trials set owner = null where lease_until = 0",
        "alter table trials drop column lease_until",
        "alter table trials add column beat integer not null default 0",
    ),
}
"""Statements that turn a ledger of a version into one of the next."""
