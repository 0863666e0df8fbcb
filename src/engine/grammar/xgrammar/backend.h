// Grammars through xgrammar's C++ core (docs/dependencies.md).
#pragma once

#include "engine/grammar/grammar.h"

namespace sluice::engine {

Result<std::unique_ptr<GrammarBackend>> make_xgrammar_backend(const GrammarVocabulary& vocabulary);

}  // namespace sluice::engine
