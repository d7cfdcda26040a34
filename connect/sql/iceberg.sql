-- Iceberg's sink only appends: a report that was written again, as in a replay, is a further row. This view shows the
-- newest row of each window. It is SQL that Trino, Spark, DuckDB, Snowflake and BigQuery all take; bar_reports may need its
-- catalog's name before it.
create or replace view newest_bar_reports as
select *
from (select r.*, row_number() over (partition by window_id order by kafka_offset desc) as age from bar_reports r) as aged
where age = 1;
