#include "engine/grammar/grammar.h"
#if SLUICE_GRAMMAR
#include "engine/grammar/xgrammar/backend.h"
#endif

namespace sluice::engine {
namespace {

constexpr GrammarBackendRow kRows[] = {
#if SLUICE_GRAMMAR
    {.name = "xgrammar", .make = make_xgrammar_backend},
#endif
    {.name = "none", .make = nullptr},
};

}  // namespace

const GrammarBackendRow* find_grammar_backend(std::string_view name) {
  for (const auto& row : kRows) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::vector<std::string_view> grammar_backend_names() {
  std::vector<std::string_view> out;
  for (const auto& row : kRows) out.push_back(row.name);
  return out;
}

}  // namespace sluice::engine
