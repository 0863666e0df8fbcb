// `sluice explain`: what a layout means for a model, without starting anything.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "engine/explain/options.h"
#include "engine/explain/report.h"
#include "engine/layout_options.h"

namespace sluice::cli {

OptionView explain_options() { return {&engine::explain_option_specs(), &engine::engine_option_table().rejected()}; }

int run_explain(const Arguments& arguments) {
  const auto text = [&]() -> Result<std::string> {
    SLUICE_TRY(const auto given, engine::parse_explain_arguments(arguments));
    SLUICE_TRY_VOID(engine::check_engine_options(given.engine));
    SLUICE_TRY(const auto concurrency, engine::concurrency_of(given.explain));
    SLUICE_TRY(const auto hardware, engine::hardware_of(given.explain, engine::rank_count(given.engine)));
    SLUICE_TRY(const auto explanation,
               engine::explain(given.engine, hardware,
                               {.input_tokens = given.explain.input_len, .output_tokens = given.explain.output_len},
                               concurrency));
    return given.explain.json ? to_json(explanation).dump(1) + "\n" : to_text(explanation);
  }();
  if (!text.ok()) return fail(text.error());
  std::fwrite(text->data(), 1, text->size(), stdout);
  return 0;
}

}  // namespace sluice::cli
