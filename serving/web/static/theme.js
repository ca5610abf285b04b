// Before anything is painted: the theme that was chosen here before, else the system's.
{
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage may be blocked */ }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
}
