module debros.network/tools/pause

go 1.25.0
