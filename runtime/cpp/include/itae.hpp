#pragma once

/// All public headers of the library.
#include "itae/bytes.hpp"
#include "itae/error.hpp"
#include "itae/golden.hpp"
#include "itae/image.hpp"
#include "itae/manifest.hpp"
#include "itae/model.hpp"
#include "itae/preprocess.hpp"
#include "itae/session.hpp"
#include "itae/verify.hpp"
#include "itae/version.hpp"
