-- PostgreSQL: the table that the sink postgres.json writes to, one row per window, and views for common questions. Run it
-- before the sink is started; it may be run again.
--   psql "$DATABASE" -f connect/sql/postgres.sql
--
-- The sink cannot create the table, because it fails at arrays with a default. It adds the columns of later fields, with the
-- field's default; the column of an array must be added here. The column of a removed field needs a default here.

create table if not exists bar_reports (
    type text not null,
    window_id text primary key,
    from_beat bigint not null,
    to_beat bigint not null,
    agents_reporting bigint not null,
    on_time_reviews bigint not null,
    help_promises_fulfilled bigint not null,
    secret_rotations_ok boolean not null,
    tempo_drift_ms bigint not null,
    issues text[] not null,
    cluster_id text not null default '',
    opened_at timestamptz not null default 'epoch',
    closed_at timestamptz not null default 'epoch',
    claims bigint not null default 0,
    late_claims bigint not null default 0,
    invalid_claims bigint not null default 0,
    tasks_done bigint not null default 0,
    tasks_failed bigint not null default 0,
    degraded_beats bigint not null default 0,
    degraded_claims bigint not null default 0,
    grace_beats integer not null default 0,
    from_offsets bigint[] not null default '{}',
    to_offsets bigint[] not null default '{}',
    logic integer not null default 1,
    agents_fell_silent bigint not null default 0,
    tasks_stalled bigint not null default 0,
    tasks_overdrawn bigint not null default 0
);
alter table bar_reports
    add column if not exists agents_fell_silent bigint not null default 0,
    add column if not exists tasks_stalled bigint not null default 0,
    add column if not exists tasks_overdrawn bigint not null default 0;
create index if not exists bar_reports_closed_at on bar_reports (closed_at);

-- Windows with late or invalid claims, the newest first.
create or replace view windows_with_late_claims as
select cluster_id, window_id, from_beat, to_beat, closed_at, claims, late_claims, invalid_claims,
       round(100.0 * late_claims / nullif(claims + late_claims, 0), 2) as late_percent
from bar_reports
where late_claims > 0 or invalid_claims > 0
order by closed_at desc;

-- Distance of beats from their schedule by day. A window counts with its worst beat.
create or replace view tempo_drift_by_day as
select cluster_id, (closed_at at time zone 'UTC')::date as day, count(*) as windows,
       round(avg(tempo_drift_ms), 1) as mean_ms,
       percentile_cont(0.95) within group (order by tempo_drift_ms) as p95_ms,
       max(tempo_drift_ms) as worst_ms
from bar_reports
group by cluster_id, day
order by day desc, cluster_id;

-- Number of agents that reported, by hour.
create or replace view agents_by_hour as
select cluster_id, date_trunc('hour', closed_at, 'UTC') as hour, min(agents_reporting) as fewest,
       round(avg(agents_reporting), 1) as mean, max(agents_reporting) as most
from bar_reports
group by cluster_id, hour
order by hour desc, cluster_id;

-- Tasks done and failed, by day. A task is counted in the window of the claim that reports its end.
create or replace view tasks_by_day as
select cluster_id, (closed_at at time zone 'UTC')::date as day, sum(tasks_done) as done, sum(tasks_failed) as failed,
       round(100.0 * sum(tasks_failed) / nullif(sum(tasks_done) + sum(tasks_failed), 0), 2) as failed_percent
from bar_reports
group by cluster_id, day
order by day desc, cluster_id;

-- Windows in which somebody needs attention, the newest first. The topic barrosters has their names.
create or replace view windows_with_attention as
select cluster_id, window_id, from_beat, to_beat, closed_at, agents_reporting, agents_fell_silent, tasks_stalled,
       tasks_overdrawn
from bar_reports
where agents_fell_silent > 0 or tasks_stalled > 0 or tasks_overdrawn > 0
order by closed_at desc;

-- Issues of reports, one row per issue.
create or replace view issues as
select cluster_id, window_id, from_beat, closed_at, issue
from bar_reports cross join lateral unnest(issues) as issue
order by closed_at desc;

-- Gaps between windows that have a report. Empty, unless reports have not arrived yet.
create or replace view missing_windows as
select cluster_id, previous_to_beat + 1 as from_beat, from_beat - 1 as to_beat
from (select cluster_id, from_beat, lag(to_beat) over (partition by cluster_id order by from_beat) as previous_to_beat
      from bar_reports) as neighbours
where previous_to_beat + 1 < from_beat;
