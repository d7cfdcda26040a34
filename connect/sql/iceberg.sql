-- The newest row of each window. Iceberg's sink only appends, so a report that is written again, as in a replay, is a
-- further row. Trino, Spark, DuckDB, Snowflake and BigQuery accept this SQL; bar_reports may have to be qualified with its
-- catalog.
create or replace view newest_bar_reports as
select *
from (select r.*, row_number() over (partition by window_id order by kafka_offset desc) as age from bar_reports r) as aged
where age = 1;
