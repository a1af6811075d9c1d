// SPDX-License-Identifier: Apache-2.0
// The results as a table, CSV, JSON and a plot.
#pragma once

#include "comparison.hpp"

#include <string>
#include <vector>

namespace comparison {

void print_table(std::vector<result> const& results);

/// @throws std::runtime_error naming the file that cannot be written
void write_csv(std::vector<result> const& results, std::string const& file);
void write_json(request const& asked, std::vector<result> const& results, std::string const& file);
/// Whether the plotting library is there; it is better to know before the work.
bool can_plot();
/// FILE.png and FILE.svg, drawn by matplotlib.
void write_plot(std::vector<result> const& results, std::string const& file);

/// A bar in the terminal, or nothing where the output is no terminal.
void show_progress(int done, int all, double seconds);

}  // namespace comparison
