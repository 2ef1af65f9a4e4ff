package store

// CopiedColumns are the tables that Copy takes over row by row, with their
// columns.
func CopiedColumns() map[string][]string {
	out := map[string][]string{}
	for _, t := range copied {
		out[t.name] = t.columns
	}
	return out
}

// CopyChunk is how many rows Copy compares at a time.
const CopyChunk = copyChunk

// Exec runs a statement as nobody should.
func (d *DB) Exec(query string, args ...any) error {
	_, err := d.current().Write.Exec(query, args...)
	return err
}

// Strings are the results of a query of one text column.
func (d *DB) Strings(query string) ([]string, error) {
	rows, err := d.current().Read.Query(query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}
